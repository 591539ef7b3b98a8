"""Random numbers that several machines must agree on: the counter-based generator, shared directions and masks, and
coordinates of tensors on such directions.

They are wire formats: versioned, the same bits on every device. Keys and privacy noise never come from here.
"""
