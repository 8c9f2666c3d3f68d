"""The search for one iterated head: for all classes together, or for each where they are independent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.config.heads import Iterated, Logistic
from common.heads import Floats
from server.heads import solvers
from server.heads.lbfgs import Search
from server.heads.solvers import Statistics


@dataclass(frozen=True)
class Searches:
    """One head's search: one for all classes together, or one for each class where they are independent."""

    head: Iterated
    weights_C: Floats
    shape: tuple[int, int]
    each: tuple[Search, ...]
    num_messages: int = 0

    @classmethod
    def begin(cls, head: Iterated, sums: Statistics) -> "Searches":
        width, classes = sums.sums_CD.shape[1] + 1, len(sums.counts_C)
        assert sums.weights_C is not None
        if isinstance(head, Logistic):
            solve = solvers.bound(sums, head.c, 0.5, penalised_bias=False)

            def solve_all(vector: Floats) -> Floats:
                return solve(vector.reshape(width, classes)).ravel()

            one = Search(solve_all, head.tolerance, np.zeros(width * classes))
            return cls(head, sums.weights_C, (width, classes), (one,))
        solve = solvers.bound(sums, head.c, 2.0, penalised_bias=True)
        each = tuple(Search(solve, head.tolerance, np.zeros(width)) for _ in range(classes))
        return cls(head, sums.weights_C, (width, classes), each)

    @property
    def per_class(self) -> bool:
        return not isinstance(self.head, Logistic)

    @property
    def finished(self) -> bool:
        return all(search.done for search in self.each) or self.num_messages >= self.head.most_messages

    @property
    def summary(self) -> str:
        value = sum(search.value for search in self.each)
        ended = (
            "converged" if all(search.done for search in self.each) else "NOT converged; raise most_messages"
        )
        return f"{ended} after {self.num_messages} messages, objective {value:.6g}"

    @property
    def trial_PC(self) -> Floats:
        return self._matrix([search.trial for search in self.each])

    @property
    def points_PC(self) -> Floats:
        return self._matrix([search.point for search in self.each])

    def _matrix(self, vectors: Sequence[Floats]) -> Floats:
        return np.stack(vectors, axis=1) if self.per_class else vectors[0].reshape(self.shape)

    def evaluated(self, losses: Floats, slopes_PC: Floats) -> "Searches":
        """The search after the sites' summed losses and gradients. The penalty is added here, once."""
        c, trial_PC = self.head.c, self.trial_PC
        penalised_PC = trial_PC.copy()
        if not self.per_class:
            penalised_PC[-1] = 0  # scikit-learn's logistic regression leaves the bias free
        whole_PC = penalised_PC + c * slopes_PC
        if self.per_class:
            values = 0.5 * (penalised_PC**2).sum(axis=0) + c * losses
            each = [
                s.evaluated(float(v), whole_PC[:, k])
                for k, (s, v) in enumerate(zip(self.each, values, strict=True))
            ]
        else:
            value = 0.5 * float((penalised_PC**2).sum()) + c * float(losses[0])
            each = [self.each[0].evaluated(value, whole_PC.ravel())]
        return replace(self, each=tuple(each), num_messages=self.num_messages + 1)

    def restarted(self) -> "Searches":
        """The search from the same points without memory, after the sites have changed."""
        return replace(self, each=tuple(s.restarted() for s in self.each), num_messages=self.num_messages + 1)
