"""What protects the owners of data from the server, from other clients and from whoever gets the model: clipping, noise
and what it is worth, the budget that is spent, sums that the server sees no part of, and audits of what leaked.

In here are pure parts: tables of the run file, arithmetic, accounting, messages of the secure sum. Robust sums are in
`fedft.aggregation`, private local steps in `fedft.training`; what is durable lies with `server/` and `client/`.
"""
