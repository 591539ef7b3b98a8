"""Messages as bytes: frames, headers and tables, read with suspicion. The bytes of single tensors are
`fedft.compression`'s.
"""
