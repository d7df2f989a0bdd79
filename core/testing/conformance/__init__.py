"""The conformance kit: subclass a class of tests and learn whether a part keeps its promises.

```python
from octavo.core.testing.conformance import AdapterCase, AdapterConformance

class TestMine(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls):
        return AdapterCase(card=CARD, model=make_model(), batches=[...])
```
"""

from .adapter import AdapterCase, AdapterConformance
from .strategy import StrategyCase, StrategyConformance

__all__ = ["AdapterCase", "AdapterConformance", "StrategyCase", "StrategyConformance"]
