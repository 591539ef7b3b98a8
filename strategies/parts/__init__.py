"""What several strategies share: states that only grow, base weights that move."""
