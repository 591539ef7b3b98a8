"""Keys, certificates, the roster of sites, and signed letters: who may speak, and that it was them.

    roster         the sites that count, as a file: read, added to, revoked in; roster_text keeps its comments,
                   enrolment looks at cards, card_proofs at who signed them
    site_table     one site as TOML: a table of the roster, or a card
    kits           what a site needs of its server, as one public file
    chained_lines  records that show whether a line was changed: a site's, and a server's
    sealed         bytes signed by their sender, bound to run, round, attempt, site and plan
    rotation       new keys in place of those in use; a server tells its sites of its own by successions
    new_keys       make all of the files below; private_keys and key_files read and write them
    certificates   X.509: the server's own authority, and whether sites will accept a certificate

What lies where:

    server's folder    ca.key, ca.pem           its own certificate authority: ECDSA P-384, ten years
                       server.key, server.pem   TLS, for the names and addresses under which sites reach it
                       signing.key, server.pub  Ed25519: what the server sends is sealed with it
                       roster.toml              the sites, one [[site]] table each
                       roster.log               sites that were removed, keys that were replaced, a line each
    site's folder      signing.key              Ed25519: what the site sends is sealed with it
                       node.key                 ECDSA P-384: the transport's login
                       NAME.card.toml           the public halves, for the server's operator
                       ca.pem, server.pub       the server's, as they come in a kit

Private keys are PKCS #8 in PEM, unencrypted, mode 0600; they never leave their folder, and no message shows them. All
keys come from the operating system's generator. A private key that cannot be used is a KeyFault, all else a user may
have wrong a ConfigError, one line each.

What a site's operator allows is in `fedft.client`; the transport's own logins are in `fedft.carriers`.
"""
