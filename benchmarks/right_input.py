from benchmarks.setting import Setting


def check(setting: Setting) -> None:
    setting.report.note("to be replaced")
