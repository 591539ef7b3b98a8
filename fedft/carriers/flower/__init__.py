"""Everything that knows Flower: its messages, a SuperLink as our child process, the node of a site."""
