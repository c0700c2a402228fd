from support.timing import fastest, typical


def test_each_function_is_timed_at_least_once_and_in_turn():
    calls = []
    times = fastest([lambda: calls.append("a"), lambda: calls.append("b")], budget=0)
    assert calls == ["a", "b"]
    assert len(times) == 2
    assert min(times) >= 0


def test_each_function_is_called_once_more_before_it_is_timed():
    calls = []
    times = typical({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0.01)
    assert calls == ["a", "a", "b", "b"] * (len(calls) // 4) != []
    assert list(times) == ["a", "b"]
    assert min(times.values()) >= 0
