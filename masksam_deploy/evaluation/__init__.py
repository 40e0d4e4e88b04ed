"""How well predicted label maps agree with references. Importing this package imports SimpleITK, not matplotlib.

from masksam_deploy.evaluation import evaluate_folders

evaluation = evaluate_folders("predictions", "references")
for row in evaluation.summary:
    print(row.name, row.mean_dice)
"""

from masksam_deploy.evaluation.evaluation import CaseMetrics, Evaluation, evaluate_folders, evaluate_pairs
from masksam_deploy.evaluation.metrics import DEFINITIONS, ClassMetrics, Status, evaluate_case
from masksam_deploy.evaluation.summary import ClassSummary

__all__ = [
    "DEFINITIONS",
    "CaseMetrics",
    "ClassMetrics",
    "ClassSummary",
    "Evaluation",
    "Status",
    "evaluate_case",
    "evaluate_folders",
    "evaluate_pairs",
]
