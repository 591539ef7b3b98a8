"""Our own carrier: one TLS 1.3 connection for each site, which the site opens, and frames of bytes both ways on it.

    frames       the form of what is on the wire, and how much of it is believed before it is read
    tls          contexts, and how a site proves that it holds the key of the roster
    channel      TLS over a socket, a bounded number of bytes at a time
    allowance    how much of something somebody may do in a second
    connection   frames over one channel in an event loop
    room         how many bytes of messages may be on their way in at a time
    parcels      messages of which a part is across
    session      messages to and from one peer; they outlive connections and go on where they broke off
    strangers    connections that have not said who they are, counted
    front        who may connect: strangers are few, short and cheap
    desk         the server's sessions and messages, in the thread of the network
    link         the server's end: `Link`
    dial         a site's way to its server, through a proxy if there is one
    pace         a bounded rate below TLS, for sites that want one
    site_node    the site's end

No gRPC: behind a front that asks for TLS 1.3 and holds strangers off, grpcio takes 1.9 times the server's CPU time of a
bare gRPC stream, while these frames take 0.6 times (`BENCHMARKS.md`).
"""
