"""A post whose clients live in several workers, each with a base model of its own on a device of its own.

    post         deals letters to the workers, and takes their answers; knows nothing of what a worker is
    crew         what a post asks of its workers, and the form in which they talk
    processes    workers that are processes on this machine
    actors       workers that are Ray actors, on one machine or several
    worker       what a worker does: answers a cohort's letters, a shared pass where it can

Not here: what a client does with a letter (`fedft.client`), and how a worker comes by its clients
(`fedft.simulations.fleet_worker`).
"""
