"""A machine that installs nothing (`make gpu`) has no web server; there, what needs one is not collected."""

from transformers.utils.import_utils import is_serve_available

collect_ignore = [] if is_serve_available() else ["test_address.py", "test_guard.py", "test_server.py"]
