"""What brings messages from the server to clients and back: inside one process, over Flower. The round engine knows
only
the interface.
"""
