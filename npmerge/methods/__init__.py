"""Published merge methods, one a file. To add one: write the file, add it to METHODS; the contract tests cover it."""

from npmerge.base import Merge
from npmerge.methods.average import Average
from npmerge.methods.fisher import Fisher
from npmerge.methods.slerp import Slerp
from npmerge.methods.task_arithmetic import TaskArithmetic

METHODS: tuple[type[Merge], ...] = (Average, TaskArithmetic, Slerp, Fisher)

__all__ = ["METHODS", "Average", "Fisher", "Slerp", "TaskArithmetic"]
