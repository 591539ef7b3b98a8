"""What a strategy is made of and what it sees: values and protocols, nothing that computes. What an author of a plug-in
reads beside `fedft.recipe`.

    adapter      Layout, Kind, Mounted, Settings        what can be trained in a base, and what that does to a weight
    model        Batch, Handle, Objective               a resident model, and what is learned from a batch
    state        State, Next, Gate                      the server's memory, and what decides whether it is committed
    planning     Roster, Member, Seen, Forecast, Work   what a planner knows of the clients, and asks of each
    turn         Turn, Private, Trained, Transform      one client's turn in one round, and what goes up
    local_step   Data, LocalStep, Learning, Term        training between download and upload

Every name below is imported from here, whichever file it stands in.
"""

from fedft.contract.adapter import Kind, Layout, Mounted, Settings, as_shape
from fedft.contract.local_step import Course, Data, Learning, LocalStep, Term
from fedft.contract.model import Batch, Handle, Metrics, Objective
from fedft.contract.planning import Forecast, Member, Planner, Roster, Seen, Work
from fedft.contract.state import NOTHING, Drawers, Gate, Measured, Next, State
from fedft.contract.turn import STAGES, Private, Stage, Trained, Transform, Turn

__all__ = [
    "NOTHING", "STAGES", "Batch", "Course", "Data", "Drawers", "Forecast", "Gate", "Handle", "Kind", "Layout",
    "Learning", "LocalStep", "Measured", "Member", "Metrics", "Mounted", "Next", "Objective", "Planner",
    "Private", "Roster", "Seen", "Settings", "Stage", "State", "Term", "Trained", "Transform", "Turn", "Work",
    "as_shape",
]  # fmt: skip
