"""What brings messages from the server to clients and back. The round engine knows `interface` only.

    interface            `Post`: letters to clients by name; `Link`: bytes to nodes, below a post
    local                a post whose clients are in this process: simulations
    fleet/               a post whose clients are in workers of one machine or several: simulations on several GPUs
    stream/              our own link and site's node: a TLS connection for each site
    flower/              a link through a Flower SuperLink
    connectivity_check   whether a site can reach its server, and if not, why

Not here: what is in a message (`fedft.wire`), signatures (`fedft.security.sealed`), and the server's post over a link,
which sends again what is lost (`fedft.server.sealed_post`).
"""
