"""For all tests: child processes can be ended by signals, however the tests themselves were started; how long an
example takes is nothing that is tested."""

import signal

import hypothesis

hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# Background jobs and nohup begin with signals ignored, which children inherit; tests send theirs these signals.
for name in ("SIGHUP", "SIGTERM", "SIGINT"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
