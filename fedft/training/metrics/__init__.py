"""What an evaluation measures on held-out rows, one file per metric: its columns and, but for the loss, how it is
measured. Which ones there are and what one is: `interface`. How they are shown is `fedft.reports.columns`'.
"""
