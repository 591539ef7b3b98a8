"""Writers of metrics for other tools, one file each; which there are, and what one is: `interface`."""
