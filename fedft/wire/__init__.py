"""Messages as bytes, read with suspicion: framing, headers, tables, and the refusal of whatever does not fit.

    messages   the door: `Plan`, `Update` and `Job` <-> bytes; its docstring is the format
    frame      magic, protocol, kind and lengths: where header, table and body of a message begin
    forms      the fields of the headers by version; versions: which there are, and which one two ends agree on
    header     the JSON fields, one check for each, the same for writing and for reading
    table      name, wire type and shape of every tensor of a message
    body       the tensors' bytes, in the order of the table

Calls go down this list and end in a codec, which gets one tensor and knows of no message. Not here: the bytes of single
tensors (`fedft.compression`), signatures (`fedft.security.sealed`), what carries a message (`fedft.carriers`), and
whether an update that can be read also counts (`fedft.server.admission`). All functions are pure: no files, sockets or
clocks, and any thread may call them.
"""
