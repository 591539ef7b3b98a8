"""How a tensor becomes few bytes: codecs by name, what they round, select and code, and who remembers what they left
out.
Framing of whole messages is in `fedft.wire`.
"""
