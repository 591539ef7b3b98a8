"""Each way of ours beside the published or plain one and a physical limit; `fedft bench` runs them.

One file each, with `bench(*, quick=False, turns=7) -> results.Result`; `measure.py` says how. The scripts in
`deployment/` measure and disturb whole deployments; they are run from a checkout and are not installed.
"""
