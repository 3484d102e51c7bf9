"""Solutions of lecture 08: printed by q1.solution() and so on, executed by the tests."""

# q1
costs = (2 + 2 + 8, 1 + 5 + 9)


# q2
import math


def attend(query, keys, values, inside):
    scores = keys @ query / math.sqrt(len(query))  # (m,)
    weights = scores.masked_fill(~inside, -math.inf).softmax(dim=0)
    return weights @ values


# q3
from scipy.optimize import linear_sum_assignment


def many_to_one(cost, k):
    queries, copies = linear_sum_assignment(cost.repeat(1, k))  # object j also at M + j, 2M + j
    return queries, copies % cost.shape[1]


# q4
import torch
from scipy.optimize import linear_sum_assignment


def merge(boxes, probabilities, other_boxes, other_probabilities):
    _, other = linear_sum_assignment(torch.cdist(boxes, other_boxes, p=1))
    other = torch.as_tensor(other)
    return (boxes + other_boxes[other]) / 2, (probabilities + other_probabilities[other]) / 2
