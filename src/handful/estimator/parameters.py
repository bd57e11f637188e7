"""Parameters as scikit-learn has them, without importing it: that alone costs a prediction half of its start.

`sklearn.clone`, pipelines, grid searches and meta-estimators ask for these functions, not for a base class.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

from handful.errors import unexpected

ROUTED = {"fit": ("class_names", "class_weights", "validation"), "score": ("sample_weight",)}
"""Arguments of methods, beside images and labels, that scikit-learn's metadata routing may pass on."""


class Parameters:
    """What `__init__` takes is read and set by name; an `__init__` stores its parameters and does no more."""

    @classmethod
    def _get_param_names(cls) -> list[str]:
        """Names of the parameters, sorted."""
        return sorted(set(inspect.signature(cls).parameters))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Give the parameters by name; `deep` changes nothing, since no parameter is an estimator."""
        return {name: getattr(self, name) for name in self._get_param_names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Raises
        ------
        ParameterError
            There is no such parameter.
        """
        known = self._get_param_names()
        for name, value in params.items():
            if name not in known:
                raise unexpected("parameter", name, f"one of {known} of {type(self).__name__}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn that this is a classifier of several classes, and what it reads."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            classifier_tags=ClassifierTags(),
            regressor_tags=None,
            input_tags=InputTags(two_d_array=True),
        )

    def get_metadata_routing(self) -> Any:
        """Say to scikit-learn which arguments meta-estimators pass on; see `set_fit_request`."""
        from sklearn.utils.metadata_routing import MetadataRequest

        asked = vars(self).get("_metadata_request")
        if asked is None:
            asked = MetadataRequest(owner=self)
            for method, names in ROUTED.items():
                for name in names:
                    getattr(asked, method).add_request(param=name, alias=None)
        return asked

    def set_fit_request(self, **requests: bool | str | None) -> Self:
        """Ask for arguments of `fit` by scikit-learn's metadata routing: `class_weights=True`.

        Raises
        ------
        ParameterError
            `fit` has no such argument.
        """
        return self._ask("fit", requests)

    def set_score_request(self, **requests: bool | str | None) -> Self:
        """Ask for arguments of `score` by scikit-learn's metadata routing: `sample_weight=True`."""
        return self._ask("score", requests)

    def _ask(self, method: str, requests: dict[str, bool | str | None]) -> Self:
        asked = self.get_metadata_routing()
        for name, alias in requests.items():
            if name not in ROUTED[method]:
                raise unexpected("request", name, f"one of {list(ROUTED[method])}, arguments of {method}")
            getattr(asked, method).add_request(param=name, alias=alias)
        vars(self)["_metadata_request"] = asked  # where `sklearn.clone` looks for it
        return self

    def __repr__(self) -> str:
        """Write the parameters that are not the default."""
        defaults = inspect.signature(type(self)).parameters
        shown = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if not (value is defaults[name].default or repr(value) == repr(defaults[name].default))
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
