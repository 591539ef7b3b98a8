"""An encoding of records: of the response its first line is learned, the others are read only."""


def first_line(record, tokenizer):
    """Token ids of prompt and response, and of each whether it is learned."""
    first, end, rest = record["response"].partition("\n")
    given, learned, read = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (record["prompt"], first + end, rest)
    )
    return given + learned + read, [False] * len(given) + [True] * len(learned) + [False] * len(read)
