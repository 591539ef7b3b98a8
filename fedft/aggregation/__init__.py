"""What the server makes of the updates of a round: means over clients, and optimisers that take them as gradients."""
