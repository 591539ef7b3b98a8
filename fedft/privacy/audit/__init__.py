"""What somebody who gets the model could find out of the records that it was trained on: planted secrets, who was a
member, and text that the tuned model writes and its base does not. A lower bound, never a proof.
"""
