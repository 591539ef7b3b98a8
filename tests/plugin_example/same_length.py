"""A metric that is a plain function: how many generations are as long as they should be."""


def same_length(predictions, references):
    """Share of generations that are as long as the response."""
    return sum(len(p) == len(r) for p, r in zip(predictions, references, strict=True)) / len(references)


same_length.better = "higher"
