"""What the server makes of the updates of a round: means over clients."""
