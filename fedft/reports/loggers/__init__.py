"""Writers of metrics for other tools, one file each."""
