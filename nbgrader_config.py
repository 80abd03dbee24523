"""nbgrader's settings: the assignment is the folder `notebooks`, nothing is moved for it."""

c = get_config()  # noqa: F821 - nbgrader defines it

c.CourseDirectory.course_id = "fastdl"
# The instructor's notebooks are ./notebooks itself, not source/notebooks.
c.CourseDirectory.source_directory = "."

c.ClearSolutions.code_stub = {
    "python": 'raise NotImplementedError("Replace this line with your answer.")'
}

# Seconds a cell; nbgrader's own 30 is short for a measurement on a slow machine.
c.Execute.timeout = 120
