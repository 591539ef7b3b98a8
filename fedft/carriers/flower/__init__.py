"""Everything that knows Flower, and all of Flower that is used: its transport, none of its strategies or apps.

    grid                bytes <-> Flower messages
    link                the server's end: a link to the sites through a SuperLink
    superlink_session   one connection of that link
    site_node           the site's end: our process is Flower's node; connection_faults: what is wrong, in words
    message_objects     a message's pieces over HTTP, within a bound

For those who run a SuperLink; our own carrier is `fedft.carriers.stream`. SuperLinks keep messages in memory only.
"""
