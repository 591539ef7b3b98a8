"""The protocol fedft-secagg/1 as pure values: what a client and the server of a secure sum say, and what they refuse.

    member       a client in a block of sums: state in, state and message out; site_checks: what it refuses
    collector    the server: what it collects; unmasking: the sum
    messages     the eight messages as bytes
    context      who takes part in which sum, in bytes that every key is bound to
    ring         numbers as integers, masks; shamir: shares of a secret; derived_keys: one key for each use
    noise_shares noise of which every client adds a part
    saved        the state of either side as bytes for a file

A server that follows it learns the sum of at least t clients' vectors of integers and nothing of a single one, whoever
drops out; one that does not gets refusals. Nothing in here talks to a network or a disk.
"""
