"""A partitioner: rows by the length of a field, the shortest to the first client."""


def by_length(*, text: str = "response"):
    """Clients of equal size, each with rows of like length of the field `text`."""

    def cut(rows, field, clients, seed):
        """Sorted by length; equal ones by place, so the seed decides nothing."""
        order = sorted(range(len(rows)), key=lambda n: (len(str(rows[n].get(text, ""))), n))
        ends = [len(rows) * k // clients for k in range(clients + 1)]
        return {f"length-{k}": sorted(order[ends[k] : ends[k + 1]]) for k in range(clients)}

    return cut
