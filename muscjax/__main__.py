from muscjax.cli import main

main()
