"""Local steps and evaluation: back-propagation, zeroth-order steps, several clients in one pass."""
