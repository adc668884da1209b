from cnnlab.main import main

main()
