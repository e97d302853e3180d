"""Real digits, fine-tuned with and without FLOW: ``flowdata demo``, and the task of the README."""

from flowdata.demo.comparison import Task, accuracy, train
from flowdata.demo.turned_digits import load_task, pre_trained

__all__ = ["Task", "accuracy", "load_task", "pre_trained", "train"]
