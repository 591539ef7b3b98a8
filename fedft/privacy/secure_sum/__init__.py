"""The protocol fedft-secagg/1 as pure values: what a client and the server of a secure sum say, and what they refuse.

A server that follows it learns the sum of at least t clients' vectors of integers and nothing of a single one, whoever
drops out; one that does not gets refusals. Nothing in here talks to a network or a disk.
"""
