"""Schemes by name: ``format[+method...]``, as ``int8-static+smoothquant``.

``written`` reads the text, ``formats`` and ``words`` know what a format stands for, ``aliases`` the
plain names that people type, ``methods`` finds methods by their cards, and ``named`` puts these
together and says what an op takes of what its backend offers.
"""
