"""The trainer's side: how a launch begins, what it saves, what it watches, how it ends."""
