"""One thing put back at a time: each module here lists what could be, from what differs between two sides."""
