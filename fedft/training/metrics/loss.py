"""Loss, accuracy and their like: the columns of what `fedft.training.evaluate.evaluate` gives in one pass."""

from fedft.reports.columns import Column, declare

LOSS = declare(Column("loss", "loss", better="lower"))
ACCURACY = declare(Column("accuracy", "accuracy", better="higher"))
MICRO_F1 = declare(Column("micro_f1", "micro F1", better="higher"))
MAE = declare(Column("mae", "abs. error", better="lower"))
