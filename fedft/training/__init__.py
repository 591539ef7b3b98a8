"""A client's local steps and evaluation on the resident model.

In this room: steps by back-propagation (`first_order`), of several clients in one pass (`batched_clients`) and by
forward passes alone (`zeroth_order`); objectives, optimisers and metrics. Models are loaded in `fedft.models`, adapters
described in `fedft.adapters`; what is uploaded and aggregated is a strategy's, in `fedft.strategies`.
"""
