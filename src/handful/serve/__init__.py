"""Serving over HTTP: saved classifiers, and a page to make one. Needs the extra `serve`.

A request passes the gate (`gate`); its images are decoded, wait for one pass of the backbone (`engine`), and
are classified by every model that was asked for (`classifiers`). A draft (`draft`) is a classifier that is
being made on the page (`page`).
"""

from handful.serve.app import create_app
from handful.serve.classifiers import load_models
from handful.serve.engine import Limits
from handful.serve.running import make_server, run

__all__ = ["Limits", "create_app", "load_models", "make_server", "run"]
