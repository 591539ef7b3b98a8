"""A metric: how many different tokens the model predicts, as a share of all learned places."""

from fedft.data.examples import IGNORED
from fedft.reports.columns import Column


class Distinct:
    """Low where a model says the same token everywhere."""

    columns = (Column("distinct", "distinct", better="higher", form=".3f"),)

    def measure(self, model, rows):
        """`distinct`, of all learned places of the rows."""
        said = set()
        places = 0
        for batch in model.batches(rows):
            guesses, wanted = model.predictions(batch)
            learned = wanted != IGNORED
            said |= set(guesses[learned].tolist())
            places += int(learned.sum())
        return {"distinct": len(said) / places} if places else {}


distinct = Distinct()
