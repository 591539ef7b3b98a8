"""Loss and accuracy: the columns of what `fedft.training.evaluate.evaluate` gives of every model, in one pass."""

from fedft.reports.columns import Column, declare

LOSS = declare(Column("loss", "loss", better="lower"))
ACCURACY = declare(Column("accuracy", "accuracy", better="higher"))
