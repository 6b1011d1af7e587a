"""N emulated devices on one Linux machine: a network namespace and limits each, links of known latency and rate.

    from bench.testbed.testbed import Device, Testbed

Needs root, /dev/net/tun and a C compiler. Packets travel only between the namespaces that it makes.
"""
