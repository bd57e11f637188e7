"""Serving over HTTP: saved classifiers, and a page to make one. Needs the extra `serve`.

An image comes through the gate (`gate`), is decoded (`engine`), waits with others for one pass of the
backbone (`engine`), and is told by every head that was asked for; `drafts` are classifiers in the making.
"""

from handful.serve.app import create_app, run
from handful.serve.engine import Limits

__all__ = ["Limits", "create_app", "run"]
