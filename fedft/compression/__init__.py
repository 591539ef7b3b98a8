"""How a tensor becomes few bytes: codecs by name, what they round, select and code, and who remembers what they left
out.
Every codec is one value (`codec.Codec`), whose bytes are said in the docstring of its file. Framing of whole messages
is in `fedft.wire`.
"""
