"""What strategies are put together from: wire forms, states and options that are no algorithm's own, or fill a file.

States that only grow or whose base weights move; pools of seeds, seeded rows and block coordinates; spaces, walks and
their options; methods that work on another one. Arithmetic that knows no recipe stands in `fedft`.
"""
