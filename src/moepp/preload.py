"""The first import of a server that processes are forked from: it says nothing of what does not concern them."""

from .logs import quiet_libraries

quiet_libraries()
